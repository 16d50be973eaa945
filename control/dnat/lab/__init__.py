"""The lab: real kernels' networks made of namespaces, on one machine."""
