export { type HeldStep, holdSteps, type Steps } from './steps.ts'
export { expectTrips } from './trips.ts'
