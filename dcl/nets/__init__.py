"""Networks, and features of images."""
