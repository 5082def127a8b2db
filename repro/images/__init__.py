"""Packed data sets, the stream of training images, and the views in which the network sees them."""
