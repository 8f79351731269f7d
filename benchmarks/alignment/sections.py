"""All tables, by their names in template.md. Imports those modules that make them."""

from collections.abc import Callable

from benchmarks.alignment import round_tables, search_tables, setting_tables, tables
from benchmarks.alignment.findings import Section
from benchmarks.alignment.plan import Plan
from benchmarks.alignment.results import Results

SECTIONS: dict[str, Callable[[Plan, Results], Section]] = {
    "settings": setting_tables.settings,
    "confirmed": setting_tables.confirmed,
    "agreement": search_tables.agreement,
    "rates": search_tables.rates,
    "longer": setting_tables.longer,
    "few": setting_tables.few,
    "variants": search_tables.variants,
    "rounds": round_tables.rounds,
    "methods": tables.methods,
    "curves": tables.curves,
    "betas": tables.betas,
    "sizes": tables.sizes,
    "losses": tables.losses,
    "shares": tables.shares,
    "flips": tables.flips,
}
