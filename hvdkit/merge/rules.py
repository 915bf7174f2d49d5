"""The merge rules: pairs of a sparsifier (what is left out of a submodel's tensor) and a combiner (how the rest becomes
one), by the names that their papers and other tools use.

With a base the rules work on task vectors, theta = base + scale x combine(sparsify(theta_i - base)); the others combine
the tensors themselves. Rules that need data or an alignment of neurons (Fisher weights, RegMean, git re-basin) would be
further entries, with a combiner that is given more than the tensors; greedy soup and the average over checkpoints
choose submodels and weights for these rules (`hvdkit.merge.soup`, `hvdkit.merge.weights`).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """A sparsifier and a combiner, of `SPARSIFIERS` and `COMBINERS`."""

    name: str
    sparsifier: str | None
    combiner: str
    formula: str
    source: str
    has_base: bool = True
    """Whether it merges task vectors."""
    is_normalised: bool = False
    """Whether it divides by the sum of the weights."""
    has_positive_weights: bool = False
    least_models: int = 1
    only_models: int | None = None

    @property
    def takes_density(self) -> bool:
        """Whether it leaves anything out."""
        return self.sparsifier is not None


_TIES = "arXiv 2306.01708"

RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule("average", None, "average", "sum_i w_i theta_i / sum_i w_i", "Wortsman et al. 2022, arXiv 2203.05482",
             has_base=False, is_normalised=True),
        Rule("slerp", None, "spherical", "sin((1-t)a)/sin(a) theta_1 + sin(ta)/sin(a) theta_2, a their angle",
             "Shoemake 1985", has_base=False, is_normalised=True, has_positive_weights=True, only_models=2),
        Rule("karcher", None, "spherical", "the weighted Karcher mean of the directions: slerp of any number",
             "Karcher 1977; Buss and Fillmore 2001", has_base=False, is_normalised=True, has_positive_weights=True),
        Rule("task_arithmetic", None, "sum", "base + s sum_i w_i t_i, t_i = theta_i - base",
             "Ilharco et al. 2022, arXiv 2212.04089"),
        Rule("ties", "magnitude", "consensus", "base + s x the mean of the trimmed t_i that have the elected sign",
             f"Yadav et al. 2023, {_TIES}", has_positive_weights=True),
        Rule("dare_linear", "dare", "sum", "base + s sum_i w_i m_i t_i / density, m_i ~ Bernoulli(density)",
             "Yu et al. 2023, arXiv 2311.03099"),
        Rule("dare_ties", "dare", "consensus", "dare, then the consensus of ties", f"arXiv 2311.03099 and {_TIES}",
             has_positive_weights=True),
        Rule("della_linear", "della", "sum", "base + s sum_i w_i m_i t_i / p_i, m_i ~ Bernoulli(p_i), p_i by rank",
             "Deep et al. 2024, arXiv 2406.11617"),
        Rule("della", "della", "consensus", "della, then the consensus of ties",
             "Deep et al. 2024, arXiv 2406.11617", has_positive_weights=True),
        Rule("breadcrumbs", "breadcrumbs", "sum", "base + s sum_i w_i t_i without the largest and smallest elements",
             "Davari and Belilovsky 2023, arXiv 2312.06795"),
        Rule("breadcrumbs_ties", "breadcrumbs", "consensus", "breadcrumbs, then the consensus of ties",
             f"arXiv 2312.06795 and {_TIES}", has_positive_weights=True),
        Rule("model_stock", None, "stock", "base + t sum_i w_i t_i / sum_i w_i, t = k cos(a) / (1 + (k-1) cos(a))",
             "Jang et al. 2024, arXiv 2403.19522", is_normalised=True, has_positive_weights=True, least_models=2),
    )
}  # fmt: skip


def rule_named(name: str) -> Rule:
    """The rule of that name; raises ValueError naming those there are."""
    if name not in RULES:
        raise ValueError(f"rule {name!r} is not one of {', '.join(RULES)}")
    return RULES[name]
