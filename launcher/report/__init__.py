"""A run on one page that needs no network: `launcher report RUN [RUN2]`.

`run` reads what a run left, `findings` says in words what that means, `figures` draws it, `page`
puts it together.
"""
