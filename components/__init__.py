"""The steps of the pipelines: each declares its interface and calls milcore.

Strings travel between steps; no step takes an artifact, since the launcher would copy it into the pod. A component has
no default: the pipeline hands every setting on. Only a component's source travels, so it imports inside.
"""

from milcore import __version__

IMAGE = f"milcore:{__version__}"
