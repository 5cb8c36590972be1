// depin-nb in JupyterLab: a left sidebar, a status-bar item, commands. Every token is optional: Notebook 7 lacks some.

import { ILayoutRestorer, type JupyterFrontEnd, type JupyterFrontEndPlugin } from '@jupyterlab/application';
import { ICommandPalette, Notification } from '@jupyterlab/apputils';
import { ILauncher } from '@jupyterlab/launcher';
import { IStatusBar } from '@jupyterlab/statusbar';
import { Connection } from './connection';
import { depinIcon } from './icon';
import { Panel, PANEL_ID } from './panel';
import { inOrder, isActive, type Run } from './snapshot';
import { StatusItem } from './statusitem';
import css from '../style/index.css';

const OPEN = 'depin-nb:open';
const STOP = 'depin-nb:stop-run';
const CATEGORY = 'depin';

function addStyle(): void {
  const style = document.createElement('style');
  style.id = 'depin-nb-style';
  style.textContent = css;
  document.head.append(style);
}

function addCommands(app: JupyterFrontEnd, connection: Connection): void {
  /** The run that `args.run` names, else the newest active one. */
  const target = (args: Record<string, unknown>): Run | undefined =>
    inOrder(connection.snapshot.runs).find(run => isActive(run) && (typeof args['run'] !== 'string' || run.run_id === args['run']));

  app.commands.addCommand(OPEN, {
    label: args => (args['launcher'] ? 'Runs and devices' : 'Show Runs and Devices'),
    caption: 'Show the runs and devices of the depin hub',
    icon: args => (args['palette'] ? undefined : depinIcon),
    describedBy: { args: { type: 'object', properties: {} } },
    execute: () => app.shell.activateById(PANEL_ID)
  });
  app.commands.addCommand(STOP, {
    label: args => {
      const run = target(args);
      return run ? `Stop Run ${run.name || run.run_id}` : 'Stop Run';
    },
    caption: 'Stop the newest active run; its model keeps the last merge',
    isEnabled: args => target(args) !== undefined,
    describedBy: { args: { type: 'object', properties: { run: { type: 'string', description: 'A run id; else the newest active run' } } } },
    execute: async args => {
      const run = target(args);
      if (!run) return;
      try {
        await connection.control(run.run_id, 'stop');
      } catch (error) {
        Notification.error(error instanceof Error ? error.message : String(error), { autoClose: 8000 });
      }
    }
  });
  connection.changed.connect(() => app.commands.notifyCommandChanged(STOP));
}

const plugin: JupyterFrontEndPlugin<void> = {
  id: 'depin-nb:panel',
  description: 'Runs, devices and money of the depin hub in the sidebar and the status bar.',
  autoStart: true,
  optional: [ILayoutRestorer, IStatusBar, ICommandPalette, ILauncher],
  activate: (
    app: JupyterFrontEnd,
    restorer: ILayoutRestorer | null,
    statusBar: IStatusBar | null,
    palette: ICommandPalette | null,
    launcher: ILauncher | null
  ) => {
    addStyle();
    const connection = new Connection(app.serviceManager.serverSettings);
    const panel = new Panel(connection);
    app.shell.add(panel, 'left', { rank: 620 });
    restorer?.add(panel, PANEL_ID);
    addCommands(app, connection);
    statusBar?.registerStatusItem('depin-nb:status', {
      item: new StatusItem(connection, () => app.shell.activateById(PANEL_ID)),
      align: 'left',
      rank: 40
    });
    for (const command of [OPEN, STOP]) palette?.addItem({ command, category: CATEGORY, args: { palette: true } });
    launcher?.add({ command: OPEN, category: 'Other', rank: 20, args: { launcher: true } });
  }
};

export default [plugin];
