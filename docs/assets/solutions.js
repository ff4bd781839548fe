// Cells of a notebook that are tagged as a solution, or install the package, are closed at first.
"use strict";

{
  const korean = document.documentElement.lang === "ko";
  const titles = {
    solution: korean ? "풀이 코드" : "Code of the solution",
    install: korean ? "설치 (필요할 때)" : "Install, where it is needed",
  };
  for (const [tag, title] of Object.entries(titles)) {
    const cells = [...document.querySelectorAll(`.jp-Cell.celltag_${tag}`)];
    for (const cell of cells.filter((one) => !one.parentElement.closest(`.celltag_${tag}`))) {
      const details = document.createElement("details"), summary = document.createElement("summary");
      summary.textContent = title;
      cell.before(details);
      details.append(summary, cell);
    }
  }
}
