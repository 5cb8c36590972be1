"""What a person does in JupyterLab, through Playwright."""

from __future__ import annotations

from typing import Any

from jupyter_process import TOKEN, JupyterProcess

PANEL = "#depin-nb-panel"
STATUS = ".depin-lab-status"
KERNEL_S = 60

# wait_for_function takes a promise for a yes, so what is asynchronous is awaited by evaluate, with a limit of its own.
APP_READY = "() => window.jupyterapp.restored.then(() => true)"
CONTEXT_THERE = "() => window.jupyterapp.shell.currentWidget?.context?.sessionContext !== undefined"
# Idle alone is not enough: what is sent while the kernel connects is lost.
KERNEL_INFO = """ms => Promise.race([
  (async () => {
    const { context } = window.jupyterapp.shell.currentWidget;
    await context.ready;
    await context.sessionContext.ready;
    await context.sessionContext.session.kernel.info;
    return true;
  })(),
  new Promise(resolve => setTimeout(resolve, ms, false))
])"""
KERNEL_READY = """() => {
  const kernel = window.jupyterapp.shell.currentWidget.context.sessionContext.session.kernel;
  return kernel.status === 'idle' && kernel.connectionStatus === 'connected';
}"""
NONE_PENDING = """() => window.jupyterapp.shell.currentWidget.content.widgets
  .every(cell => cell.model.type !== 'code' || cell.model.executionState !== 'running')"""


def open_lab(page: Any, lab: JupyterProcess, path: str = "") -> None:
    """Opens JupyterLab (on a notebook of its root folder) and waits until it stands."""
    page.goto(f"{lab.url}lab{'/tree/' + path if path else ''}?token={TOKEN}")
    page.wait_for_function("() => window.jupyterapp !== undefined")
    page.evaluate(APP_READY)
    page.locator(STATUS).wait_for()
    if path:
        page.wait_for_function(CONTEXT_THERE)
        assert page.evaluate(KERNEL_INFO, KERNEL_S * 1000), lab.log()
        page.wait_for_function(KERNEL_READY)


def show_panel(page: Any) -> Any:
    """Opens the depin sidebar; gives its locator."""
    page.evaluate("() => window.jupyterapp.commands.execute('depin-nb:open')")
    panel = page.locator(PANEL)
    panel.wait_for(state="visible")
    return panel


def set_theme(page: Any, name: str) -> None:
    """`JupyterLab Light` or `JupyterLab Dark`."""
    page.evaluate("name => window.jupyterapp.commands.execute('apputils:change-theme', { theme: name })", name)
    page.wait_for_function("name => document.body.dataset.jpThemeName === name", arg=name)
    page.locator("#jupyterlab-splash").wait_for(state="detached")


def run_all(page: Any) -> None:
    """Starts all cells; does not wait for their end."""
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); }")


def wait_idle(page: Any, timeout_s: float) -> None:
    """Waits until no cell runs or waits to run: no prompt shows [*] and the kernel is idle."""
    page.wait_for_function(NONE_PENDING, timeout=timeout_s * 1e3)
    page.wait_for_function(KERNEL_READY, timeout=timeout_s * 1e3)


def run_code(page: Any, code: str) -> str:
    """Runs code in the current notebook's kernel, as another cell would; gives what it printed."""
    return page.evaluate(
        """async code => {
          const kernel = window.jupyterapp.shell.currentWidget.context.sessionContext.session.kernel;
          let text = '';
          const future = kernel.requestExecute({ code });
          future.onIOPub = message => {
            if (message.header.msg_type === 'stream') text += message.content.text;
            if (message.header.msg_type === 'error') text += message.content.ename + ': ' + message.content.evalue;
          };
          await future.done;
          return text;
        }""",
        code,
    )


def outputs(page: Any) -> list[list[dict[str, Any]]]:
    """The outputs of each code cell of the current notebook, as nbformat has them."""
    return page.evaluate(
        "() => window.jupyterapp.shell.currentWidget.content.model.toJSON().cells.filter(c => c.cell_type === 'code').map(c => c.outputs)"
    )
