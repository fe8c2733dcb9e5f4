"""What people said of images: kinds of labels, shapes, masks of several annotators, consensus, agreement."""
