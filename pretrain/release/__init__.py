"""Releasing an encoder: reference features, model card, verification, the gate before a push."""
