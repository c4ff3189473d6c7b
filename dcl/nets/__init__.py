"""Networks, and what they compute of images."""
