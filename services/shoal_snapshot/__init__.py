"""The snapshot service: owns what templates stand for. Hears questions; says snapshots, or why there is none."""
