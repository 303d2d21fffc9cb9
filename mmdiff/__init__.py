"""One diffusion model of several modalities."""
