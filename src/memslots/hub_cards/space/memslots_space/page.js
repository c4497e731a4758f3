(text, rate, question, status) => {
  // Dims what was said of another text (`views.mark`), rate or question than the page has now.
  const mark = (text) => {
    let found = 0;
    for (let i = 0; i < text.length; i++) found = (Math.imul(found, 31) + text.charCodeAt(i)) >>> 0;
    return `${found}`;
  };
  setTimeout(() => document.querySelectorAll("[data-text]").forEach((shown) => {
    const {text: about, rate: at, question: asked = question.trim()} = shown.dataset;
    const fits = about === mark(text) && at === `${rate}` && asked === question.trim();
    shown.classList.toggle("stale", !fits);
  }), 60);
  if (status === undefined) return [];
  // Something else is given: what was refused before goes, and what would be refused now is said.
  document.querySelectorAll(".toast-close").forEach((button) => button.click());
  document.querySelectorAll(".notice").forEach((notice) => {
    if (!notice.closest("#status")) notice.classList.add("past");
  });
  const size = [...text].length, most = MOST;
  if (size > most) return `<p class="notice" role="alert">The document is too long: ` +
    `${size.toLocaleString("en")} characters, at most ${most.toLocaleString("en")} fit here. ` +
    "Nothing is cut off: shorten it.</p>";
  if (!text.trim()) return '<p class="hint">Paste a text, or upload one.</p>';
  return status.includes('class="notice"') ? "" : {__type__: "update"};
}
