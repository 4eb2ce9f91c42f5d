"""AtlasNet: segment medical volumes from a handful of annotated scans."""

__version__ = "0.1.0"
