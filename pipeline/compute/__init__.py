"""Devices, memory and processes of this machine."""
