"""A log as a user table, an item table and an item bias: where a strong base model comes from."""

from reclora.factorisation.config import FactorisationConfig
from reclora.factorisation.course import Factorisation, FactorisationError, Judge
from reclora.factorisation.factorise import factorise

__all__ = ["Factorisation", "FactorisationConfig", "FactorisationError", "Judge", "factorise"]
