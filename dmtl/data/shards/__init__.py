"""WebDataset shards: labelled images in tar files, with an index of the position of every file in them."""
