"""Other people's formats, in and out: archives and their members, LitData, nnU-Net, export to plain files."""
