"""The place of open_source before data had wings: it is data.sources.formats now, and this name keeps working."""

from data.sources.formats import open_source as open_source
