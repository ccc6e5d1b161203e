"""``vqkit.audit``: any vector quantizer against the laws."""

from vqkit.gradients.audit.discover import Conventions
from vqkit.gradients.audit.report import Audit, Finding, Kept, Law, NotMeasured
from vqkit.gradients.audit.run import audit, audit_class

__all__ = ["Audit", "Conventions", "Finding", "Kept", "Law", "NotMeasured", "audit", "audit_class"]
