"""Virtual machines for tests: QEMU guests with kernels of several ages, driven over a virtual serial line."""
