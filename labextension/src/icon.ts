import { LabIcon } from '@jupyterlab/ui-components';
import svgstr from '../style/depin.svg';

export const depinIcon = new LabIcon({ name: 'depin-nb:depin', svgstr });
