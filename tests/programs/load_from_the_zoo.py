"""Prints the models that zoo knows, and what two of them are."""

from tf_isvae import zoo

print(zoo.names(), zoo.load("digits").image_shape, zoo.load("letters").image_shape)
