"""Public datasets onto this disk: downloaded, verified, unpacked safely, and ready to build.

`fetch.fetch` does it all for one dataset of the catalogue. The parts: `plan` (which files, or which steps by
hand), `licence` (shown and accepted once), `download` and `partial` (resumed, verified files), `extract`
(archives as if they came from an enemy), `recognise` (the collection's YAML).
"""
