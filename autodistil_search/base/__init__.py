"""Internal: what every package uses: errors, files, manifests, progress, devices and plug-ins."""
