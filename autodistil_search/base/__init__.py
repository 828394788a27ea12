"""Internal: foundations of every package: errors, files, manifests, progress, devices and plug-ins."""
