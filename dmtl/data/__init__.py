"""Labelled images: data sets, partial labels, joint transforms and the loader. Importing this reads nothing."""
