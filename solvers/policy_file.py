"""What does a policy look like on disk?

``policy/1``, JSON: layers by name with their bits and sizes, the network's fingerprint, the named
accounting, the cost breakdown in plain units, and the certificate. The cost is counted again by
whoever holds the cost table; here it is a record.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from solvers.accounting import CostBreakdown
from solvers.atomic import write_atomically
from solvers.certificate import Certificate, LimitUse, SolveStatus
from solvers.decode import Fields
from solvers.errors import FormatError, PolicyError
from solvers.policy import Policy
from solvers.tables import LayerBits

POLICY_SCHEMA = "policy/1"


def policy_record(policy: Policy) -> dict[str, Any]:
    """The policy as plain JSON-able values."""
    sizes = zip(policy.layers, policy.num_macs, policy.num_weights, strict=True)
    return {
        "schema": POLICY_SCHEMA,
        "policy_id": policy.policy_id,
        "model": policy.model,
        "fingerprint": policy.fingerprint,
        "source": policy.source,
        "accounting": policy.accounting,
        "cost": asdict(policy.cost)
        | {
            "bitops_g": policy.cost.bitops_g,
            "size_mib": policy.cost.size_mib,
            "compression": policy.cost.compression,
        },
        "certificate": policy.certificate and certificate_record(policy.certificate),
        "layers": [
            {
                "name": name,
                "weight_bits": bits.weight_bits,
                "act_bits": bits.act_bits,
                "num_macs": macs,
                "num_weights": weights,
            }
            for (name, bits), macs, weights in sizes
        ],
    }


def certificate_record(certificate: Certificate) -> dict[str, Any]:
    """The certificate as plain JSON-able values."""
    record = asdict(certificate) | {"status": certificate.status.value}
    record["uses"] = [asdict(use) | {"slack": use.slack} for use in certificate.uses]
    return record


def save_policy(path: Path | str, policy: Policy) -> None:
    """Write a policy as ``policy/1``, atomically."""
    write_atomically(path, json.dumps(policy_record(policy), indent=1, allow_nan=False) + "\n")


def load_policy(path: Path | str) -> Policy:
    """Read ``policy/1``; ``check_fits`` then holds it against a network.

    Raises:
        FormatError: not such a file, naming the key.
        PolicyError: impossible contents, naming the layer.
    """
    fields = read_json_object(path)
    schema = fields.text("schema")
    if schema != POLICY_SCHEMA:
        raise FormatError(f"{path}: holds {schema}, but {POLICY_SCHEMA} is what can be read here")
    layers: list[tuple[str, LayerBits]] = []
    num_macs, num_weights = [], []
    seen: set[str] = set()
    for item in fields.items("layers"):
        name = item.text("name")
        if name in seen:
            raise PolicyError(f"{path}: layer {name!r} stands twice")
        seen.add(name)
        widths = []
        for key in ("weight_bits", "act_bits"):
            bits = item.whole(key)
            if not 1 <= bits <= 32:
                raise PolicyError(f"{path}: layer {name!r}: {key} is {bits}; widths are 1 to 32")
            widths.append(bits)
        layers.append((name, LayerBits(weight_bits=widths[0], act_bits=widths[1])))
        num_macs.append(item.whole("num_macs"))
        num_weights.append(item.whole("num_weights"))
    if not layers:
        raise PolicyError(f"{path}: layers is empty")
    policy = Policy(
        model=fields.text("model"),
        fingerprint=fields.text("fingerprint"),
        layers=tuple(layers),
        num_macs=tuple(num_macs),
        num_weights=tuple(num_weights),
        source=fields.text("source"),
        accounting=fields.text("accounting"),
        cost=_cost(fields.inner("cost")),
        certificate=(
            None if fields.raw("certificate") is None else _certificate(fields.inner("certificate"))
        ),
    )
    if policy.policy_id != fields.text("policy_id"):
        raise PolicyError(
            f"{path}: policy_id is {fields.text('policy_id')}, but its bits make "
            f"{policy.policy_id}; the file was changed by hand"
        )
    return policy


def read_json_object(path: Path | str) -> Fields:
    """A JSON file whose top level is an object.

    Raises:
        FormatError: missing, not JSON, or not an object.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FormatError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"{path}: cannot be read ({error})") from error
    try:
        decoded = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: is not JSON, perhaps it is cut short ({error})") from error
    return Fields.of(decoded, str(path))


def _cost(fields: Fields) -> CostBreakdown:
    cost = CostBreakdown(
        bitops=fields.whole("bitops"),
        bitops_searched=fields.whole("bitops_searched"),
        weight_bits_total=fields.whole("weight_bits_total"),
        full_precision_bits=fields.whole("full_precision_bits"),
        mean_weight_bits=fields.number("mean_weight_bits"),
        mean_act_bits=fields.number("mean_act_bits"),
    )
    if cost.weight_bits_total <= 0:
        raise PolicyError(f"{fields.where}: weight_bits_total is {cost.weight_bits_total}")
    return cost


def _certificate(fields: Fields) -> Certificate:
    try:
        status = SolveStatus(fields.text("status"))
    except ValueError:
        known = ", ".join(s.value for s in SolveStatus)
        raise FormatError(f"{fields.where}: status must be one of {known}") from None
    return Certificate(
        status=status,
        objective=fields.number("objective"),
        bound=fields.number("bound"),
        gap=fields.number("gap"),
        alpha=fields.number("alpha"),
        repair=fields.text("repair"),
        uses=tuple(_limit_use(use) for use in fields.items("uses")),
        price_method=fields.text("price_method"),
        solver=fields.text("solver"),
        solver_version=fields.text("solver_version"),
        wall_s=fields.number("wall_s"),
        cpu_s=fields.number("cpu_s"),
    )


def _limit_use(fields: Fields) -> LimitUse:
    return LimitUse(
        kind=fields.text("kind"),
        limit=fields.text("limit"),
        resource=fields.text("resource"),
        bound=fields.whole("bound"),
        use=fields.whole("use"),
        shown_bound=fields.number("shown_bound"),
        shown_use=fields.number("shown_use"),
        binding=fields.flag("binding"),
        price=fields.number_or_none("price"),
    )
