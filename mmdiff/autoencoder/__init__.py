"""A small convolutional autoencoder: photos to few numbers and back, the second encoder for photos."""
