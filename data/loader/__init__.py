"""Samples → batches: workers, shared-memory ring, transfer to the device, measurement."""
