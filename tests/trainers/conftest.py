"""What every test of the trainers room runs under."""

from __future__ import annotations

import torch

# The networks are small: with more threads the tests wait for each other's, twice as long on two
# cores, and sums would depend on the machine.
torch.set_num_threads(1)
