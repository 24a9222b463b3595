"""Autoencoders with one layer of latents or several, their decoders and likelihoods."""
