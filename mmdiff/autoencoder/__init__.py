"""A small convolutional autoencoder of photos, whose latents are the anchor of `kind = "latent_image"`."""
