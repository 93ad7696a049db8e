"""See the matching while a detector trains: what a head matched on an image, and pictures of that."""

from .fixed_images import file_of, fixed_items, plain_pipeline
from .recorder import Record, matchings_of, record, unwrapped, why_not

__all__ = ['Record', 'file_of', 'fixed_items', 'matchings_of', 'plain_pipeline', 'record', 'unwrapped', 'why_not']
