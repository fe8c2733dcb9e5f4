"""Detection: boxes of images, the anchors planned from them, the network, windows over large images."""
