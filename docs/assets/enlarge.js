// A click on a picture, or Enter, shows it in its full size; the next one, or Escape, closes it.
"use strict";

{
  const dialog = document.createElement("dialog");
  dialog.className = "enlarged";
  dialog.addEventListener("click", () => dialog.close());
  document.body.append(dialog);
  const korean = document.documentElement.lang === "ko";
  for (const picture of document.querySelectorAll(".md-content img")) {
    if (picture.closest("a")) continue;
    const enlarge = () => {
      const large = picture.cloneNode();
      large.removeAttribute("tabindex");
      large.removeAttribute("role");
      dialog.replaceChildren(large);
      dialog.showModal();
      dialog.scrollTo((dialog.scrollWidth - dialog.clientWidth) / 2, 0);
    };
    Object.assign(picture, { tabIndex: 0, title: korean ? "확대" : "enlarge" });
    picture.setAttribute("role", "button");
    picture.addEventListener("click", enlarge);
    picture.addEventListener("keydown", (key) => ["Enter", " "].includes(key.key) && (key.preventDefault(), enlarge()));
    // a wide picture is moved sideways on a small screen rather than made too small to be read
    const wide = () => {
      if (picture.naturalWidth > 700 && picture.parentElement.clientWidth < 600) {
        picture.parentElement.classList.add("moved");
        picture.style.minWidth = `${Math.min(picture.naturalWidth, 960)}px`;
      }
    };
    if (picture.complete) wide();
    else picture.addEventListener("load", wide);
  }
}
