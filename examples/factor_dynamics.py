"""What the two factors do while they train: python examples/factor_dynamics.py."""

from __future__ import annotations

import torch

import asymlora as al
from small_models import batch, classifier


def main() -> list[dict[str, object]]:
    """Train both factors from B = 0 and print, for one site, which part of the step each factor made."""
    model = al.attach(classifier(), al.AdapterSpec.lora(rank=4, targets=("query", "value")))
    optimizer = torch.optim.AdamW(al.param_groups(model, lr=1e-2))
    model.train()
    with al.FeatureDynamics(model, batch(), every=10) as dynamics:
        for _ in range(30):
            model(**batch()).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    site = dynamics.records[0]["site"]
    print(f"site: {site}\nstep  Z_A    Z_B    delta1 (A)  delta2 (B)  delta3 (both)  effective rank")
    for row in dynamics.records:
        if row["site"] == site:
            parts = "  ".join(f"{row[name]:<10.2g}" for name in ("delta1", "delta2", "delta3"))
            print(f"{row['step']:>4}  {row['Z_A']:<5.2f}  {row['Z_B']:<5.2f}  {parts}     {row['effective_rank']:.2f}")
    print(f"largest identity error: {max(row['identity_error'] for row in dynamics.records):.1g}")
    return dynamics.records


if __name__ == "__main__":
    main()
