"""Phantoms: unpaired CT-like and MR-like anatomies in the raw layouts of BTCV, CHAOS and MM-WHS."""
