const choice = document.getElementById("run");
choice.parentElement.hidden = false;
choice.addEventListener("change", () => {
  for (const row of document.querySelector("#cases tbody").rows)
    row.hidden = choice.value !== "" && row.lastElementChild.textContent !== choice.value;
});
