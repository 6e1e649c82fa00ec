import type { Kysely } from 'kysely'
import { createModelCache } from 'loadstone'
import type { PortalTables } from '../customs/portal.ts'

declare const db: Kysely<PortalTables>

export const portal = createModelCache({ db, namespace: 'portal' })

export const Team = portal.model('teams', {
  keyFields: [['id']],
  relations: { users: { many: 'users', on: { id: 'team_id' } } },
})
export const Avatar = portal.model('avatars', { keyFields: [['id']], filterFields: [['user_id']] })
export const PrimaryAvatar = portal.instance({
  name: 'PrimaryAvatar',
  model: Avatar,
  keyFields: ['user_id'],
  loadOne: async ({ user_id }) => `avatar of ${user_id}`,
})
export const User = portal.model('users', {
  keyFields: [['id'], ['email']],
  filterFields: [['team_id'], ['name']],
  relations: {
    team: { one: 'teams', on: { team_id: 'id' } },
    avatars: { many: 'avatars', on: { id: 'user_id' } },
  },
  extend: (c) => ({
    ofTeam: (id: number) => c.filterAsync({ team_id: id }),
    primaryAvatar: (id: number) => PrimaryAvatar(id).resolveAsync(),
  }),
})
export const Event = portal.model('events', {
  keyFields: [['id'], ['slug']],
  relations: {
    owner: { one: 'users', on: { owner_id: 'id' } },
    tags: { many: 'tags', through: 'event_tags', on: { id: 'event_id' }, to: { tag_id: 'id' } },
  },
})
export const UsersOfTeam = portal.queryset({ name: 'UsersOfTeam', model: User, keyFields: ['team_id'] })

/** The same models, which know of each other. */
export const linked = portal.link({
  Team,
  Avatar,
  User,
  Event,
  Tag: portal.model('tags', {
    keyFields: [['id']],
    relations: {
      events: { many: 'events', through: 'event_tags', on: { id: 'tag_id' }, to: { event_id: 'id' } },
    },
  }),
})
