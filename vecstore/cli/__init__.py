"""The command line: what `vecstore.open` offers, for a shell.

`main` lists the commands; `data`, `operate` and `demo` hold them. `where` opens what a command names, `output` is all
that is printed. `files` opens a file to import; `arrays`, `tables` and `lines` read it into the batches of `batch`;
`ingest` writes those, and `bookmark` remembers how far it got.

Only this package uses click and rich, and it talks to a store only through `Database` (for a store that does not open,
through `vecstore.engine.doctor`).
"""
