"""Encoders of others that people compare with: one record each in configs/zoo, loaded like ours."""
