"""WebDataset shards: labelled images in tar files, read by the place of every file in them."""
