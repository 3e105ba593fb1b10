"""Reproduction of Ilse, Tomczak, Welling 2018 (arXiv 1802.04712).

It runs on the product's own import, model, loop and Ray.
"""
