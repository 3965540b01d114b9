"""The runs: one verb, one story a file. Installed as `reclora.pipelines`."""
