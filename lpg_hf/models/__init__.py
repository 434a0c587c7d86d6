"""Models, configurations and image processors; importing this package registers them with the Auto classes.

A checkpoint may carry these files as remote code, so each imports only its siblings and third-party packages.
"""

from .auto import register


register()
