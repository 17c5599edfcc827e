// Wide blocks and tables scroll; with a place in the tab order they do so from the keyboard too.
addEventListener("DOMContentLoaded", () => {
  for (const wide of document.querySelectorAll(".md-typeset__scrollwrap, .md-typeset pre > code, .formula, .picture")) {
    if (wide.scrollWidth > wide.clientWidth) wide.tabIndex = 0
  }
})
