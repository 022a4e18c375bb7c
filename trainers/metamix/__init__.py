"""MetaMix: meta-state, bit selection, weight training (Kim et al., AAAI 2024)."""
