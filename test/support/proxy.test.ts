import { once } from 'node:events'
import { type AddressInfo, connect, createServer, type Socket } from 'node:net'
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import { freePort } from '../servers/ports.ts'
import { type FaultyProxy, startProxy } from './proxy.ts'

describe('startProxy', () => {
  const seen: string[] = []
  const echo = createServer((socket) => {
    socket.on('error', () => {})
    socket.on('data', (bytes) => {
      seen.push(bytes.toString())
      socket.write(`${bytes}!`)
    })
  })
  let proxy: FaultyProxy
  let client: Socket
  let received: string

  beforeAll(async () => {
    echo.listen(0, '127.0.0.1')
    await once(echo, 'listening')
  })
  afterAll(() => void echo.close())

  beforeEach(async () => {
    seen.length = 0
    proxy = await startProxy((echo.address() as AddressInfo).port)
    client = open(proxy.port)
    return async () => {
      client.destroy()
      await proxy.close()
    }
  })

  function open(port: number): Socket {
    received = ''
    const socket = connect(port, '127.0.0.1').setEncoding('utf8')
    socket.on('error', () => {}) // told by 'close' as well
    socket.on('data', (text) => {
      received += text
    })
    return socket
  }

  function expectReply(text: string): Promise<void> {
    return expect.poll(() => received, { interval: 2 }).toBe(text)
  }

  function closed(socket: Socket): Promise<void> {
    return new Promise((resolve) => socket.once('close', () => resolve()))
  }

  test('carries bytes both ways', async () => {
    client.write('hello')
    await expectReply('hello!')
  })

  test('hold: requests do not arrive until release', async () => {
    proxy.hold('requests')
    client.write('held')
    const other = connect((echo.address() as AddressInfo).port, '127.0.0.1')
    other.write('past the proxy')
    await once(other, 'data')
    other.destroy()
    expect(seen).toEqual(['past the proxy'])
    proxy.release()
    await expectReply('held!')
  })

  test('hold: replies do not arrive until release', async () => {
    proxy.hold('replies')
    client.write('done')
    await expect.poll(() => seen).toEqual(['done'])
    expect(received).toBe('')
    proxy.release()
    await expectReply('done!')
  })

  test('cut: connections are reset, what was held back is lost, and new ones are welcome', async () => {
    client.write('a')
    await expectReply('a!')
    proxy.hold()
    client.write('lost')
    proxy.cut()
    await closed(client)
    proxy.release()
    client = open(proxy.port)
    client.write('b')
    await expectReply('b!')
    expect(seen).toEqual(['a', 'b'])
    expect(proxy.accepted).toBe(2)
  })

  test('leadTo: new connections lead to another server, and those that are open stay', async () => {
    client.write('a')
    await expectReply('a!')
    const other = createServer((socket) => socket.end('another')).listen(0, '127.0.0.1')
    await once(other, 'listening')
    proxy.leadTo((other.address() as AddressInfo).port)
    client.write('b')
    await expectReply('a!b!')
    const next = open(proxy.port)
    await expectReply('another')
    next.destroy()
    other.close()
  })

  test('delay: each way takes longer, and keeps its order', async () => {
    proxy.delay(20)
    const began = performance.now()
    client.write('a')
    await expectReply('a!')
    expect(performance.now() - began).toBeGreaterThan(35)
    client.write('b')
    await expect.poll(() => seen, { interval: 2 }).toEqual(['a', 'b'])
    proxy.delay(0)
    client.write('c')
    await expectReply('a!b!c!')
  })

  test('an end is carried on', async () => {
    client.write('bye')
    await expectReply('bye!')
    client.end()
    await closed(client)
  })

  test('a server that is not there looks the same through it', async () => {
    const nowhere = await startProxy(await freePort())
    await closed(open(nowhere.port))
    await nowhere.close()
  })
})
