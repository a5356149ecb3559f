"""The number grids: encode, decode, fake-quantize; used by training and export."""
